{{/* Runs before anything is rendered. Helm does not promise an order, so every file begins with
     `kubefledged.prepare`. The first call completes the values, refuses those that cannot work and
     translates kube-fledged's values in place; the other files see the result. Messages are added to
     .Values.notes, for NOTES.txt. */}}

{{- define "kubefledged.prepare" -}}
{{- if not (hasKey .Values "notes") }}
{{- $_ := set .Values "notes" list }}
{{- $defaults := .Files.Get "files/defaults.yaml" | fromYaml }}
{{- include "kubefledged.complete" (dict "values" .Values "defaults" $defaults) }}
{{- include "kubefledged.translate" . }}
{{- include "kubefledged.refuse" . }}
{{- if .Values.preflight.enabled }}
{{- include "kubefledged.preflight" . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Adds the defaults of values that do not exist: `helm upgrade --reuse-values` takes all values of
     the version before, which lacks those that are new in this one. Null removes a default of
     Kubernetes' own shapes, of a list and of priorityClassName, so these stay as they are. */}}
{{- define "kubefledged.complete" -}}
{{- $values := .values }}
{{- $shapes := list "resources" "podSecurityContext" "securityContext" "nodeSelector" "updateStrategy" "labels" }}
{{- range $key, $default := .defaults }}
{{- $now := get $values $key }}
{{- if kindIs "map" $default }}
{{- if has $key $shapes }}
{{- else if kindIs "map" $now }}
{{- include "kubefledged.complete" (dict "values" $now "defaults" $default) }}
{{- else if empty $now }}
{{- $_ := set $values $key (deepCopy $default) }}
{{- end }}
{{- else if kindIs "slice" $default }}
{{- else if and (or (not (hasKey $values $key)) (kindIs "invalid" $now)) (ne $key "priorityClassName") }}
{{- $_ := set $values $key $default }}
{{- end }}
{{- end }}
{{- end }}

{{- define "kubefledged.translate" -}}
{{- $root := . }}
{{- $defaults := .Files.Get "files/defaults.yaml" | fromYaml }}
{{- range (.Files.Get "files/kube-fledged-values.yaml" | fromYaml).values }}
{{- $entry := . }}
{{- $old := $root.Values }}
{{- range splitList "." .old }}
{{- $old = ternary (get (ternary $old dict (kindIs "map" $old)) .) "" (kindIs "map" $old) }}
{{- end }}
{{- $set := or (kindIs "bool" $old) (kindIs "float64" $old) (kindIs "int64" $old) (not (empty $old)) }}
{{- $usual := and (hasKey . "usual") (eq (toJson .usual) (toJson $old)) }}
{{- if and .image $set (contains "senthilrch/" (toString $old)) }}
{{- $note := printf "%s is ignored: kube-fledged's own image does not run here" .old }}
{{- $_ := set $root.Values "notes" (append $root.Values.notes $note) }}
{{- else if and $set .why (not $usual) }}
{{- $_ := set $root.Values "notes" (append $root.Values.notes (printf "%s has no effect: %s" .old .why)) }}
{{- else if $set }}
{{- if .level }}
{{- $words := dict "info" "info" "warning" "warn" "warn" "warn" "error" "error" "fatal" "error" }}
{{- $old = default (lower $old) (get $words (lower $old)) }}
{{- end }}
{{- range .new }}
{{- include "kubefledged.take" (dict "root" $root "defaults" $defaults "entry" $entry "old" $old "new" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* One old value into one new one. */}}
{{- define "kubefledged.take" -}}
{{- $path := splitList "." .new }}
{{- $parent := .root.Values }}
{{- $default := .defaults }}
{{- range initial $path }}
{{- $parent = get $parent . }}
{{- $default = get $default . }}
{{- end }}
{{- $key := last $path }}
{{- $default = get $default $key }}
{{- $now := get $parent $key }}
{{- $want := .old }}
{{- if kindIs "map" .old }}
{{- $want = mergeOverwrite (deepCopy $default) .old }}
{{- end }}
{{- if ne (toJson $now) (toJson $want) }}
{{- if ne (toJson $now) (toJson $default) }}
{{- fail (printf "\n\n%s is %s, but %s, which it is called now, is %s: remove %s\n" .entry.old (toJson .old) .new (toJson $now) .entry.old) }}
{{- end }}
{{- $_ := set $parent $key $want }}
{{- if .entry.image }}
{{- $_ := set $parent "registry" "" }}
{{- end }}
{{- if not (and (hasKey .entry "usual") (eq (toJson .entry.usual) (toJson .old))) }}
{{- $_ := set .root.Values "notes" (append .root.Values.notes (printf "%s is called %s now" .entry.old .new)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Values that contradict each other. */}}
{{- define "kubefledged.refuse" -}}
{{- with .Values.puller }}
{{- $socket := regexReplaceAll "^/var/run/" .criSocketPath "/run/" }}
{{- $_ := set . "criSocketPath" $socket }}
{{- if and $socket (not (hasPrefix (printf "%s/" .runtimeDirectory) $socket)) }}
{{- fail (printf "\n\npuller.criSocketPath %s is not below puller.runtimeDirectory %s, which the puller mounts: set puller.runtimeDirectory to the socket's directory\n" $socket .runtimeDirectory) }}
{{- end }}
{{- end }}
{{- $providers := include "kubefledged.credentialProviders" . | fromYaml }}
{{- if ne (empty $providers.config) (empty $providers.binDir) }}
{{- fail "\n\npuller.credentialProviders.config and puller.credentialProviders.binDir are of use only together: set both, or a preset\n" }}
{{- end }}
{{- if and .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled }}
{{- fail "\n\nmetrics.podMonitor.enabled and metrics.serviceMonitor.enabled would scrape everything twice: choose one\n" }}
{{- end }}
{{- end }}

{{/* Other installations, as far as this cluster shows them: nothing is found by `helm template`, and
     the controller looks again when it starts. */}}
{{- define "kubefledged.preflight" -}}
{{- $root := . }}
{{- range (lookup "admissionregistration.k8s.io/v1" "ValidatingWebhookConfiguration" "" "").items }}
{{- $groups := list }}
{{- range .webhooks }}
{{- range .rules }}
{{- $groups = concat $groups (default list .apiGroups) }}
{{- end }}
{{- end }}
{{- if has "kubefledged.io" $groups }}
{{- include "kubefledged.refuseOwner" (dict "root" $root "object" . "kind" "validatingwebhookconfiguration") }}
{{- end }}
{{- end }}
{{- range (lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "").items }}
{{- $pulls := false }}
{{- $caches := false }}
{{- range .rules }}
{{- $pulls = or $pulls (and (has "jobs" (default list .resources)) (has "create" .verbs)) }}
{{- $caches = or $caches (and (has "imagecaches/status" (default list .resources)) (has "patch" .verbs)) }}
{{- end }}
{{- if and $caches (or $pulls (eq "controller" (get (default dict .metadata.labels) "app.kubernetes.io/component"))) }}
{{- include "kubefledged.refuseOwner" (dict "root" $root "object" . "kind" "clusterrole") }}
{{- end }}
{{- end }}
{{- end }}

{{/* Refuses what belongs to another installation. What is named like ours and has no release was
     applied without Helm: Helm itself refuses it, or takes it over with --take-ownership. */}}
{{- define "kubefledged.refuseOwner" -}}
{{- $labels := default dict .object.metadata.labels }}
{{- $annotations := default dict .object.metadata.annotations }}
{{- $release := get $annotations "meta.helm.sh/release-name" }}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" }}
{{- $name := .object.metadata.name }}
{{- $components := list "controller" "webhook-server" }}
{{- $ours := and (eq "kubefledged" (get $labels "app.kubernetes.io/part-of")) (has (get $labels "app.kubernetes.io/component") $components) }}
{{- $where := printf "%s %s" .kind $name }}
{{- $remove := printf "kubectl delete %s %s" .kind $name }}
{{- if $release }}
{{- $where = printf "release %s in namespace %s, %s" $release $namespace $where }}
{{- $remove = printf "helm uninstall %s -n %s" $release $namespace }}
{{- end }}
{{- if and $ours $release (eq $namespace .root.Release.Namespace) (eq $release .root.Release.Name) }}
{{- else if and $ours (not $release) (has $name (list (include "kubefledged.controller" .root) (include "kubefledged.webhook" .root))) }}
{{- else if $ours }}
{{- fail (printf "\n\nkubefledged is already installed in this cluster (%s). Upgrade that one, or remove it first: %s\n" $where (ternary $remove "make remove-kubefledged" (ne $release ""))) }}
{{- else }}
{{- fail (printf "\n\nkube-fledged is still installed in this cluster (%s). Remove it as docs/migrate.md says, its ImageCaches stay; at last: %s\n" $where $remove) }}
{{- end }}
{{- end }}
