{{/* NOTES.txt renders this template. It is a template so that tests can render it by `extraObjects`. */}}
{{- define "kubefledged.notes" -}}
{{- $namespace := include "kubefledged.namespace" . -}}
kubefledged {{ .Chart.AppVersion }} is in namespace {{ $namespace }}.

Watch it become ready:

  kubectl get pods -n {{ $namespace }} -l {{ include "kubefledged.commonSelector" . | replace ": " "=" | replace "\n" "," }}
  helm test {{ .Release.Name }} -n {{ .Release.Namespace }}

If a puller does not become ready, its log says why. On nodes that enforce SELinux set
puller.securityContext.seLinuxOptions.type: spc_t.

Create a first ImageCache:

  kubectl apply -f - <<END
  apiVersion: kubefledged.io/v1alpha2
  kind: ImageCache
  metadata:
    name: first
    namespace: {{ $namespace }}
  spec:
    cacheSpec:
      - images:
          - docker.io/library/busybox:1.37
  END
  kubectl wait --for=condition=Ready imagecache/first -n {{ $namespace }}
{{- range include "kubefledged.warnings" . | fromYamlArray }}

NOTE: {{ . }}
{{- end }}
{{- end }}

{{/* Returns a YAML list of sentences. */}}
{{- define "kubefledged.warnings" -}}
{{- $warnings := list }}
{{- $namespace := include "kubefledged.namespace" . }}
{{- $labels := dig "metadata" "labels" dict (lookup "v1" "Namespace" "" $namespace) }}
{{- if ne "privileged" (get $labels "pod-security.kubernetes.io/enforce") }}
{{- $warnings = append $warnings (printf "the puller mounts a directory of its node. If Pod Security admission is on, allow that: kubectl label namespace %s pod-security.kubernetes.io/enforce=privileged" $namespace) }}
{{- end }}
{{- if .Capabilities.APIVersions.Has "networking.gke.io/v1" }}
{{- $warnings = append $warnings "on GKE only Standard clusters can run pullers, because Autopilot lets no pod reach a node's runtime. For Artifact Registry without imagePullSecrets set puller.credentialProviders.preset to gke" }}
{{- end }}
{{- if .Capabilities.APIVersions.Has "vpcresources.k8s.aws/v1beta1" }}
{{- $warnings = append $warnings "on EKS a puller cannot run on Fargate. For ECR without imagePullSecrets set puller.credentialProviders.preset to eks" }}
{{- end }}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" }}
{{- range list "controller" "webhook-server" "puller" }}
{{- $values := get (dict "controller" $.Values.controller "webhook-server" $.Values.webhook "puller" $.Values.puller) . }}
{{- $account := include "kubefledged.serviceAccountName" (dict "root" $ "component" . "values" $values) }}
{{- $scc := ternary "privileged" "nonroot-v2" (eq . "puller") }}
{{- $warnings = append $warnings (printf "OpenShift must allow its pods: oc adm policy add-scc-to-user %s -z %s -n %s" $scc $account $namespace) }}
{{- end }}
{{- end }}
{{- if not .Values.webhook.enabled }}
{{- $warnings = append $warnings "webhook.enabled is false: mistakes in an ImageCache only show in its status." }}
{{- end }}
{{- if not .Values.crds.enabled }}
{{- $warnings = append $warnings "crds.enabled is false: apply the CustomResourceDefinition yourself, now and before each upgrade. The command kubefledged-controller crd prints it." }}
{{- else if not .Values.crds.keep }}
{{- $warnings = append $warnings "crds.keep is false: helm uninstall deletes every ImageCache of the cluster." }}
{{- end }}
{{- if not .Values.rbac.create }}
{{- $warnings = append $warnings "rbac.create is false: without the rights in the chart's README nothing is pulled." }}
{{- else if and (eq .Values.rbac.secretAccess "namespaces") (not .Values.rbac.secretNamespaces) }}
{{- $warnings = append $warnings "rbac.secretNamespaces is empty: no imagePullSecrets of any ImageCache can be read." }}
{{- end }}
{{- $warnings = concat $warnings .Values.notes }}
{{- $warnings | toYaml }}
{{- end }}
