#!/bin/sh
# Joins `boute autopilot` to a fleet that runs in Kubernetes as `boute export k8s` wrote it: docs/operating.md, "In a cluster".
# Run beside plan.json, with `boute` and `kubectl`.
#   follow   until it is stopped: gateways' decisions come into decisions.jsonl, a gateway's admin interface to port 8081 of this
#            machine, and plan.json goes into the cluster whenever it has changed
#   fleet    has the fleet of the plan in $BOUTE_PLAN running, and no other: the autopilot's --apply
# NAMESPACE is the fleet's; EXPORT holds options of `boute export k8s`, such as `--gateway-image IMAGE`.
set -eu
: "${NAMESPACE:=default}" "${EXPORT:=}" "${EVERY_S:=10}" "${SETTLE_S:=60}"
gateways="app.kubernetes.io/name=boute-gateway"
engines="boute.dev/group"
mkdir -p cluster/running

kube() { kubectl -n "$NAMESPACE" "$@"; }

fleet() {
  # The last fleet of a move does without what the plan before used: gateways get the time to take over the new one.
  if cmp -s "$BOUTE_PLAN" plan.json; then sleep "$SETTLE_S"; fi
  rm -rf cluster/fleet
  # shellcheck disable=SC2086 # several options
  boute export -q k8s "$BOUTE_PLAN" -o cluster/fleet $EXPORT
  kube apply --server-side -f cluster/fleet
  # Groups that the plan has no more: what is not in a file is not stopped by applying it.
  groups="$(cd cluster/fleet && printf '%s\n' engines-*.yaml | sed 's/^engines-//; s/\.yaml$//' | paste -s -d , -)"
  lws="$(kube api-resources --api-group leaderworkerset.x-k8s.io -o name)"
  kube delete "deployments,services,networkpolicies${lws:+,$lws}" -l "$engines,$engines notin ($groups)"
  # Should GPUs be lost, not all of it will ever be ready.
  timeout 900 kubectl -n "$NAMESPACE" rollout status deployment -l "$engines" ||
    echo "not all engines are ready; going on" >&2
}

# Whether what was started under this name is still running.
runs() { [ -e "cluster/running/$1" ] && kill -0 "$(cat "cluster/running/$1")" 2> /dev/null; }

# The log of a gateway's pod, from its beginning; where the connection broke off, from about there.
decisions() {
  if runs "$1"; then return; fi
  since=
  if [ -e "cluster/running/$1" ]; then since="--since=${EVERY_S}s"; fi
  kubectl -n "$NAMESPACE" logs -f ${since:+"$since"} "$1" >> decisions.jsonl &
  echo $! > "cluster/running/$1"
}

admin() {
  if runs admin; then return; fi
  kubectl -n "$NAMESPACE" port-forward deployment/boute-gateway 8081:8081 > /dev/null &
  echo $! > cluster/running/admin
}

# The gateways' part of the export, which has the plan; what is published is remembered once it is there.
publish() {
  if cmp -s plan.json cluster/published; then return; fi
  # shellcheck disable=SC2086 # several options
  cp plan.json cluster/next && rm -rf cluster/routes &&
    boute export -q k8s plan.json -o cluster/routes $EXPORT || return
  for file in cluster/routes/gateway*.yaml; do
    kube apply --server-side -f "$file" || return
  done
  mv cluster/next cluster/published
}

follow() {
  rm -f cluster/running/*
  : > decisions.jsonl
  trap 'kill $(cat cluster/running/*) 2> /dev/null || true' EXIT
  trap 'exit 143' INT TERM
  while :; do
    for pod in $(kube get pods -l "$gateways" --field-selector status.phase=Running -o name); do
      decisions "${pod#pod/}"
    done
    admin
    publish || echo "plan.json is not published; trying again" >&2
    sleep "$EVERY_S"
  done
}

case "${1:-}" in
  fleet | follow) "$1" ;;
  *) echo "usage: $0 fleet | follow" >&2; exit 2 ;;
esac
