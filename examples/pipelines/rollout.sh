#!/bin/sh
# A rollout that starts its pods where the weights are already: warm, then roll, then wait.
#   NAMESPACE=serving DEPLOYMENT=llama MODEL=llama-3-70b ./rollout.sh
set -eu

: "${MODEL:?}" "${DEPLOYMENT:?}" "${NAMESPACE:=default}"

# Ends 0 only when the weights are verified and published on 90 % of the nodes where this Deployment's pods could run.
# Otherwise the rollout does not begin: 1 the source is broken, 3 timed out (it says which nodes, and why), 4 refused.
cacheagent warm "$MODEL" --like "deployment/$DEPLOYMENT" --namespace "$NAMESPACE" --percent 90 --timeout "${TIMEOUT:-30m}"

kubectl --namespace "$NAMESPACE" rollout restart "deployment/$DEPLOYMENT"
kubectl --namespace "$NAMESPACE" rollout status "deployment/$DEPLOYMENT" --timeout 15m
