-- Health of a kubefledged.io/v1alpha2 ImageCache for Argo CD: the value of
-- resource.customizations.health.kubefledged.io_ImageCache in the ConfigMap argocd-cm.
local status = obj.status or {}
if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "waiting for the controller to look at this generation"}
end
local found = {}
for _, condition in ipairs(status.conditions or {}) do
  found[condition.type] = condition
end
local function holds(name)
  return found[name] ~= nil and found[name].status == "True"
end
if holds("Stalled") then
  return {status = "Degraded", message = found.Stalled.message}
end
if holds("Reconciling") then
  return {status = "Progressing", message = found.Reconciling.message}
end
if found.Progressing ~= nil and found.Progressing.reason == "Suspended" then
  return {status = "Suspended", message = "spec.suspend is true"}
end
if found.Ready ~= nil and found.Ready.status ~= "True" then
  return {status = "Progressing", message = found.Ready.message}
end
-- Enough nodes hold every image, as spec.minReadyNodes says, or the cache was purged on request.
if holds("Degraded") then
  return {status = "Healthy", message = found.Degraded.message}
end
return {status = "Healthy", message = (found.Ready or found.Progressing or {message = ""}).message}
