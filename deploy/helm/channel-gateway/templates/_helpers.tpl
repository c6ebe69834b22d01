{{- define "gateway.name" -}}
{{- .Values.name | default .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "gateway.selector" -}}
app.kubernetes.io/name: gateway
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gateway.labels" -}}
{{ include "gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "gateway.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* What a node and its migration have in common. */}}
{{- define "gateway.container" -}}
image: {{ include "gateway.image" . | quote }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
env:
  - {name: GATEWAY_NODE_ID, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  {{- range $setting, $key := .Values.secret.files }}
  - {name: {{ $setting }}, value: {{ printf "/run/secrets/gateway/%s" $key | quote }}}
  {{- end }}
  {{- range $setting, $value := .Values.settings }}
  {{- /* A whole number is not to be written as 1e+06. */}}
  {{- if and (kindIs "float64" $value) (eq (floor $value) $value) }}{{ $value = int64 $value }}{{ end }}
  - {name: {{ $setting }}, value: {{ toString $value | quote }}}
  {{- end }}
  - {name: GATEWAY_DRAIN__DELAY_SECONDS, value: {{ .Values.drain.delaySeconds | int64 | quote }}}
  - {name: GATEWAY_DRAIN__WINDOW_SECONDS, value: {{ .Values.drain.windowSeconds | int64 | quote }}}
  - {name: GATEWAY_DRAIN__GRACE_SECONDS, value: {{ add .Values.drain.delaySeconds .Values.drain.windowSeconds 10 | quote }}}
  {{- if .Values.config }}
  - {name: GATEWAY_CONFIG, value: /etc/channel-gateway/gateway.toml}
  {{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: secrets, mountPath: /run/secrets/gateway, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  {{- if .Values.config }}
  - {name: config, mountPath: /etc/channel-gateway, readOnly: true}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
