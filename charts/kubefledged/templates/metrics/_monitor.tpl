{{/* One endpoint of a PodMonitor or a ServiceMonitor; values: that monitor's block. */}}
{{- define "kubefledged.monitorEndpoint" -}}
- port: http
  path: /metrics
  {{- with .interval }}
  interval: {{ . }}
  {{- end }}
  {{- with .scrapeTimeout }}
  scrapeTimeout: {{ . }}
  {{- end }}
  relabelings:
    - sourceLabels: [__meta_kubernetes_pod_node_name]
      targetLabel: node
    {{- with .relabelings }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .metricRelabelings }}
  metricRelabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "kubefledged.monitorMetadata" -}}
name: {{ include "kubefledged.fullname" .root }}{{ .suffix }}
namespace: {{ include "kubefledged.namespace" .root }}
labels:
  {{- include "kubefledged.labels" (dict "root" .root "component" "metrics") | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
