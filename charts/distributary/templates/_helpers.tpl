{{- /* Takes the chart's context and a component. */ -}}
{{- define "distributary.labels" -}}
{{ include "distributary.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{- /* What never changes in the life of a release. */ -}}
{{- define "distributary.selector" -}}
app.kubernetes.io/name: distributary
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- /* The Secret with the servers' certificate and key. */ -}}
{{- define "distributary.tlsSecret" -}}
{{- if eq .Values.tls.source "secret" }}{{ .Values.tls.secretName }}{{ else }}{{ .Release.Name }}-server-tls{{ end -}}
{{- end -}}
