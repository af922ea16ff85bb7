{{/* Helpers take the root context, or a dict of root, component (controller, webhook-server or
     puller) and values (that component's block). */}}

{{- define "kubefledged.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 48 | trimSuffix "-" }}
{{- end }}

{{/* Short enough for the longest suffix, -webhook-server. */}}
{{- define "kubefledged.fullname" -}}
{{- $name := include "kubefledged.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 48 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "kubefledged.controller" -}}
{{ include "kubefledged.fullname" . }}-controller
{{- end }}

{{- define "kubefledged.webhook" -}}
{{ include "kubefledged.fullname" . }}-webhook-server
{{- end }}

{{- define "kubefledged.puller" -}}
{{ include "kubefledged.fullname" . }}-puller
{{- end }}

{{- define "kubefledged.namespace" -}}
{{ default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{/* Secrets with certificates: in mode managed the controller writes them. */}}
{{- define "kubefledged.caSecret" -}}
{{ include "kubefledged.fullname" . }}-ca
{{- end }}

{{- define "kubefledged.leafSecrets" -}}
{{- range list "puller" "controller" "webhook-server" "debug" }}
- {{ include "kubefledged.fullname" $ }}-{{ . }}-tls
{{- end }}
{{- end }}

{{- define "kubefledged.webhookSecret" -}}
{{ include "kubefledged.webhook" . }}-tls
{{- end }}

{{- define "kubefledged.pullerSecret" -}}
{{ include "kubefledged.puller" . }}-tls
{{- end }}

{{- define "kubefledged.serviceAccountName" -}}
{{- $default := printf "%s-%s" (include "kubefledged.fullname" .root) .component }}
{{- default $default .values.serviceAccount.name }}
{{- end }}

{{/* Selectors are immutable: no version and no chart in them. */}}
{{- define "kubefledged.selectorLabels" -}}
{{ include "kubefledged.commonSelector" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* The labels of kube-fledged's own manifests, by which its users' commands and dashboards select. They are in no
     selector of ours. A label of the same name in commonLabels or podLabels wins. */}}
{{- define "kubefledged.familiarLabels" -}}
{{- $own := merge (dict) (default dict .podLabels) (default dict .root.Values.commonLabels) }}
{{- if has .component (list "controller" "webhook-server") }}
{{- if not (hasKey $own "app") }}
app: kubefledged
{{- end }}
{{- if not (hasKey $own "kubefledged") }}
kubefledged: kubefledged-{{ .component }}
{{- end }}
{{- end }}
{{- end }}

{{- define "kubefledged.labels" -}}
{{ include "kubefledged.selectorLabels" . }}
{{- include "kubefledged.familiarLabels" (dict "root" .root "component" .component) }}
app.kubernetes.io/part-of: kubefledged
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Of what belongs to no component. */}}
{{- define "kubefledged.commonSelector" -}}
app.kubernetes.io/name: {{ include "kubefledged.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kubefledged.image" -}}
{{- $registry := default .values.image.registry .root.Values.global.imageRegistry }}
{{- $name := .values.image.repository }}
{{- if $registry }}
{{- $name = printf "%s/%s" (trimSuffix "/" $registry) $name }}
{{- end }}
{{- if .values.image.digest }}
{{- printf "%s@%s" $name .values.image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion .values.image.tag) }}
{{- end }}
{{- end }}

{{- define "kubefledged.podMetadata" -}}
labels:
  {{- include "kubefledged.selectorLabels" . | nindent 2 }}
  {{- with include "kubefledged.familiarLabels" (dict "root" .root "component" .component "podLabels" .values.podLabels) | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  app.kubernetes.io/part-of: kubefledged
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  {{- with .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Of a Deployment. No pod goes before its successor is ready; but on the node's network two pods
     cannot share a node, for their ports. */}}
{{- define "kubefledged.strategy" -}}
{{- if .values.updateStrategy }}
{{- toYaml .values.updateStrategy }}
{{- else }}
type: RollingUpdate
rollingUpdate:
  maxSurge: {{ ternary 0 1 .values.hostNetwork }}
  maxUnavailable: {{ ternary 1 0 .values.hostNetwork }}
{{- end }}
{{- end }}

{{/* Of a Deployment with several replicas. */}}
{{- define "kubefledged.podDisruptionBudget" -}}
{{- if and .values.podDisruptionBudget.enabled (gt (int .values.replicas) 1) -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "kubefledged.fullname" .root }}-{{ .component }}
  namespace: {{ include "kubefledged.namespace" .root }}
  labels:
    {{- include "kubefledged.labels" . | nindent 4 }}
spec:
  minAvailable: {{ .values.podDisruptionBudget.minAvailable }}
  # A pod that is not ready does nothing: it must not block a drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "kubefledged.selectorLabels" . | nindent 6 }}
{{- end }}
{{- end }}

{{/* What the pods of all components have in common, beside containers and volumes. */}}
{{- define "kubefledged.podSpec" -}}
serviceAccountName: {{ include "kubefledged.serviceAccountName" . }}
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if .values.hostNetwork }}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "kubefledged.tolerations" . }}
tolerations:
  {{- . | nindent 2 }}
{{- end }}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .values.affinity }}
affinity:
  {{- toYaml .values.affinity | nindent 2 }}
{{- else if gt (int .values.replicas) 1 }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "kubefledged.selectorLabels" . | nindent 14 }}
{{- end }}
{{- end }}

{{/* All our pods tolerate the taint of the node gate: pullers bring the images, and if every node is new, the controller
     must run on one to release it. */}}
{{- define "kubefledged.tolerations" -}}
{{- $all := default list .values.tolerations }}
{{- if .root.Values.nodeGate.taint.enabled }}
{{- $all = append $all (dict "key" .root.Values.nodeGate.taint.key "operator" "Exists") }}
{{- end }}
{{- if $all }}
{{- toYaml $all }}
{{- end }}
{{- end }}

{{/* The end of a container, after its volumeMounts. */}}
{{- define "kubefledged.containerTail" -}}
livenessProbe:
  httpGet:
    path: /livez
    port: http
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet:
    path: /readyz
    port: http
  {{- /* A new node waits for its puller: a second of delay is one for every pod that waits for images. */}}
  periodSeconds: {{ ternary 1 2 (eq .component "puller") }}
  timeoutSeconds: 2
{{- with .values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "kubefledged.serviceAccount" -}}
{{- if .values.serviceAccount.create }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "kubefledged.serviceAccountName" . }}
  namespace: {{ include "kubefledged.namespace" .root }}
  labels:
    {{- include "kubefledged.labels" . | nindent 4 }}
  {{- with .values.serviceAccount.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
# A pod that needs the token says so.
automountServiceAccountToken: false
{{- end }}
{{- end }}
