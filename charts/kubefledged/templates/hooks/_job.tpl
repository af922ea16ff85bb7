{{/* The context of a Job of ours: the controller's image and place, an account of its own. */}}
{{- define "kubefledged.jobPodSpec" -}}
{{- $values := deepCopy .root.Values.controller }}
{{- $_ := set $values "serviceAccount" (dict "name" "") }}
{{- $_ := set $values "replicas" 1 }}
{{- $_ := set $values "topologySpreadConstraints" list }}
{{- include "kubefledged.podSpec" (dict "root" .root "component" .component "values" $values) }}
automountServiceAccountToken: true
restartPolicy: Never
containers:
  - name: controller
    image: {{ include "kubefledged.image" (dict "root" .root "values" $values) | quote }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    args:
      - {{ .component }}
      - --timeout={{ .timeout }}
      - --namespace={{ include "kubefledged.namespace" .root }}
      - --lease-name={{ include "kubefledged.controller" .root }}
      - --deployment-name={{ include "kubefledged.controller" .root }}
      - --puller-service={{ include "kubefledged.puller" .root }}
      - --secret-prefix={{ include "kubefledged.fullname" .root }}
      - --webhook-configuration={{ if .root.Values.webhook.enabled }}{{ include "kubefledged.webhook" .root }}{{ end }}
      - --log-format={{ $values.logFormat }}
    resources:
      requests:
        cpu: 10m
        memory: 16Mi
      limits:
        memory: 128Mi
    {{- with $values.securityContext }}
    securityContext:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}

{{/* Metadata of what exists for one hook only; weight: lower comes first. */}}
{{- define "kubefledged.hookMetadata" -}}
name: {{ include "kubefledged.fullname" .root }}-{{ .component }}
{{- if eq .scope "namespace" }}
namespace: {{ include "kubefledged.namespace" .root }}
{{- end }}
labels:
  {{- include "kubefledged.labels" . | nindent 2 }}
annotations:
  helm.sh/hook: {{ .hook }}
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: {{ .policy }}
{{- end }}

{{/* Account, roles and their bindings of a Job; clusterRules and rules are YAML lists or empty. */}}
{{- define "kubefledged.jobRights" -}}
{{- $global := merge (dict "scope" "cluster" "weight" "-2") . }}
{{- $local := merge (dict "scope" "namespace" "weight" "-2") . }}
{{- $name := printf "%s-%s" (include "kubefledged.fullname" .root) .component }}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "kubefledged.hookMetadata" $local | nindent 2 }}
automountServiceAccountToken: false
{{- range $kind, $rules := dict "ClusterRole" .clusterRules "Role" .rules }}
{{- if $rules }}
{{- $context := ternary $local $global (eq $kind "Role") }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}
metadata:
  {{- include "kubefledged.hookMetadata" $context | nindent 2 }}
rules:
  {{- $rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
metadata:
  {{- include "kubefledged.hookMetadata" $context | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $kind }}
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $name }}
    namespace: {{ include "kubefledged.namespace" $.root }}
{{- end }}
{{- end }}
{{- end }}
