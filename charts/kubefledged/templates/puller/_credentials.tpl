{{/* What the kubelet's credential provider plugins need: values over the preset. */}}
{{- define "kubefledged.credentialProviders" -}}
{{- $given := .Values.puller.credentialProviders }}
{{- $presets := .Files.Get "files/credential-providers.yaml" | fromYaml }}
{{- $preset := deepCopy (default dict (get $presets $given.preset)) }}
{{- range $name, $value := omit $given "preset" }}
{{- if $value }}
{{- $_ := set $preset $name $value }}
{{- end }}
{{- end }}
{{- toYaml $preset }}
{{- end }}
