#!/usr/bin/env bash
# From nothing installed to recommendations over gRPC: installs, builds, trains, serves, records, recommends.
#
# Usage: deploy/quickstart.sh [--exit] [INTERACTIONS]
#   INTERACTIONS  a RecBole atomic file (.inter, with an optional .item beside it for titles) or a CSV with a
#                 header (MovieLens ratings.csv as it comes); without it a small synthetic file is written
#   --exit        stop the server at the end instead of leaving it to answer calls
# All it makes lies in build/quickstart, or in the folder that TIM4REC_RUN names.
# TIM4REC_TRAIN_FLAGS is passed on to `tim4rec train`, TIM4REC_PRESET picks a preset of CMakePresets.json.
set -euo pipefail

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; }
exit_at_end=0
interactions=
for argument in "$@"; do
  case "$argument" in
    --exit) exit_at_end=1 ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "quickstart: unknown option $argument" >&2; usage >&2; exit 2 ;;
    *)
      [ -z "$interactions" ] || { echo "quickstart: one interaction file at most" >&2; exit 2; }
      interactions=$(realpath -m -- "$argument")
      [ -r "$interactions" ] || { echo "quickstart: cannot read $argument" >&2; exit 2; }
      ;;
  esac
done
cd "$(dirname "$0")/.."
preset="${TIM4REC_PRESET:-release}"
bin=build/$preset/bin
run="${TIM4REC_RUN:-build/quickstart}"
step() { printf '\n== %s (%d:%02d since the start)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

step "1/5 packages"
deploy/install_packages.sh

step "2/5 build"
deploy/build.sh tim4rec tim4rec-server tim4rec_proto_python

step "3/5 train"
rm -rf "$run"/{model,data,server.out,server.log,synthetic.inter,synthetic.item}
mkdir -p "$run"
if [ -z "$interactions" ]; then
  interactions=$run/synthetic.inter
  /usr/bin/python3 deploy/synthesize.py "$interactions"
  echo "no interaction file given: wrote a synthetic one, $interactions (what is in it: deploy/synthesize.py --help)"
fi
# shellcheck disable=SC2086  # the flags are words
"$bin/tim4rec" train "$interactions" --out "$run/model" ${TIM4REC_TRAIN_FLAGS:-}
"$bin/tim4rec" evaluate --model "$run/model" "$interactions" --split test

step "4/5 serve"
# The usual ports, or free ones where something else already listens.
listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
port=50051; listening "$port" && port=0
metrics_port=9464; listening "$metrics_port" && metrics_port=0
admin_port=50052; listening "$admin_port" && admin_port=0
# In a session of its own, so that Ctrl-C reaches this script only: two signals end the server without a drain.
setsid "$bin/tim4rec-server" --model "$run/model" --data "$run/data" \
  --listen "127.0.0.1:$port" --metrics-listen "127.0.0.1:$metrics_port" --admin-listen "127.0.0.1:$admin_port" \
  >"$run/server.out" 2>"$run/server.log" &
server=$!
stop_server() { kill -TERM "$server" 2>/dev/null && wait "$server"; }
trap 'stop_server || true' EXIT
for _ in $(seq 300); do
  grep -q '^metrics on' "$run/server.out" && break
  kill -0 "$server" 2>/dev/null || { echo "quickstart: the server did not start:" >&2; tail -n 5 "$run/server.log" >&2; exit 1; }
  sleep 0.1
done
address=$(sed -n 's/^listening on //p' "$run/server.out")
metrics=$(sed -n 's/^metrics on //p' "$run/server.out")
[ -n "$address" ] && [ -n "$metrics" ] || { echo "quickstart: the server was not ready after 30 s: $run/server.log" >&2; exit 1; }
echo "the server answers on $address"

step "5/5 record and recommend"
PYTHONPATH="build/$preset/python" /usr/bin/python3 deploy/quickstart_demo.py \
  --address "$address" --model "$run/model" "$interactions"

printf '\n== done in %d:%02d\n' $((SECONDS / 60)) $((SECONDS % 60))
echo "gRPC     $address"
echo "metrics  http://$metrics/metrics"
if [ "$exit_at_end" = 1 ]; then
  trap - EXIT
  stop_server || { echo "quickstart: the server did not stop cleanly: $run/server.log" >&2; exit 1; }
  echo "the server was stopped; its log is $run/server.log"
else
  echo "log      $run/server.log"
  trap 'echo; stop_server && echo "the server has stopped"; trap - EXIT; exit 0' INT TERM
  echo "stop it with Ctrl-C, or: kill -TERM $server"
  wait "$server"
fi
