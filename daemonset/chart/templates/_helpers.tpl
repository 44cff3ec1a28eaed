{{- define "cacheagent.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "cacheagent.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* The controller knows a cache node by the first two of these (cacheagent/kube/names.py). */ -}}
{{- define "cacheagent.selectorLabels" -}}
app.kubernetes.io/name: cacheagent
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "cacheagent.labels" -}}
app.kubernetes.io/name: cacheagent
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* What every container of ours has but csi and the one that makes the directory. */ -}}
{{- define "cacheagent.hardened" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "cacheagent.agentUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "cacheagent.fullname" . }}-agent
{{- end -}}

{{- /* nodeSelectorTerms of `nodes: gpu`: the labels that the GPU Operator gives, and those of NFD that it looks at itself. */ -}}
{{- define "cacheagent.gpuTerms" -}}
{{- range list "nvidia.com/gpu.present" "feature.node.kubernetes.io/pci-10de.present" "feature.node.kubernetes.io/pci-0302_10de.present" "feature.node.kubernetes.io/pci-0300_10de.present" }}
- matchExpressions:
    - key: {{ . }}
      operator: In
      values: ["true"]
{{- end }}
{{- end -}}

{{- define "cacheagent.nfsMounts" -}}
{{- $mounts := list -}}
{{- range $index, $export := . -}}
{{- $mounts = append $mounts (printf "%s:%s=/mnt/nfs/%d" $export.server $export.path $index) -}}
{{- end -}}
{{- join "," $mounts -}}
{{- end -}}

{{- /* What alerts and dashboards tell targets by: the node, so that a restarted pod goes on with its series, and whose it is. */ -}}
{{- define "cacheagent.relabelings" -}}
- sourceLabels: [__meta_kubernetes_pod_node_name]
  targetLabel: node
- sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_component]
  targetLabel: component
{{- end -}}
