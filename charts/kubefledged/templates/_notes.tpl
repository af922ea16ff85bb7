{{/* NOTES.txt is this, so that tests can render it with `extraObjects`. */}}
{{- define "kubefledged.notes" -}}
{{- $namespace := include "kubefledged.namespace" . -}}
kubefledged {{ .Chart.AppVersion }} is in namespace {{ $namespace }}.

See it become ready:

  kubectl get pods -n {{ $namespace }} -l {{ include "kubefledged.commonSelector" . | replace ": " "=" | replace "\n" "," }}
  helm test {{ .Release.Name }} -n {{ .Release.Namespace }}

A puller that does not become ready says why in its log. On nodes that enforce SELinux it needs
puller.securityContext.seLinuxOptions.type: spc_t.

A first image cache:

  kubectl apply -f - <<END
  apiVersion: kubefledged.io/v1alpha2
  kind: ImageCache
  metadata:
    name: imagecache1
    namespace: {{ $namespace }}
  spec:
    cacheSpec:
      - images:
          - docker.io/library/busybox:1.37
  END
  kubectl wait --for=condition=Ready imagecache/imagecache1 -n {{ $namespace }}
{{- range include "kubefledged.warnings" . | fromYamlArray }}

NOTE: {{ . }}
{{- end }}
{{- end }}

{{/* A YAML list of sentences. */}}
{{- define "kubefledged.warnings" -}}
{{- $warnings := list }}
{{- $namespace := include "kubefledged.namespace" . }}
{{- $labels := dig "metadata" "labels" dict (lookup "v1" "Namespace" "" $namespace) }}
{{- if ne "privileged" (get $labels "pod-security.kubernetes.io/enforce") }}
{{- $warnings = append $warnings (printf "the puller mounts a directory of its node. Where Pod Security admission is on, allow that: kubectl label namespace %s pod-security.kubernetes.io/enforce=privileged" $namespace) }}
{{- end }}
{{- if .Capabilities.APIVersions.Has "networking.gke.io/v1" }}
{{- $warnings = append $warnings "on GKE only Standard clusters have pullers: Autopilot lets nobody reach a node's runtime. For Artifact Registry without imagePullSecrets: puller.credentialProviders.preset: gke" }}
{{- end }}
{{- if .Capabilities.APIVersions.Has "vpcresources.k8s.aws/v1beta1" }}
{{- $warnings = append $warnings "on EKS there is no puller on Fargate. For ECR without imagePullSecrets: puller.credentialProviders.preset: eks" }}
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
{{- $warnings = append $warnings "webhook.enabled is false: mistakes in an ImageCache show in its status only." }}
{{- end }}
{{- if not .Values.crds.enabled }}
{{- $warnings = append $warnings "crds.enabled is false: install the CustomResourceDefinition yourself, also before each upgrade. kubefledged-controller crd prints it." }}
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
