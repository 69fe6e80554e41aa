#!/usr/bin/env bash
# Run one of the two apps on this machine: a SuperLink and three SuperNodes on loopback, and a counter of bytes between.
# Usage: ./run.sh before|after [WORK_DIRECTORY]     (flwr, torch and fedsparsify are installed in the current environment)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
app=${1:?before or after}
work=$(mkdir -p "${2:-run-$app}" && cd "${2:-run-$app}" && pwd)
port=${PORT:-18100}
export FLWR_HOME=$work/flwr FLWR_TELEMETRY_ENABLED=0 OMP_NUM_THREADS=1 # one thread a process: five train and evaluate
mkdir -p "$FLWR_HOME"
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT

# Without TLS, which is for loopback only: docs/deployment.md has the rest.
cat >"$FLWR_HOME/config.toml" <<X
[superlink]
default = "here"
[superlink.here]
address = "127.0.0.1:$port"
insecure = true
X
cd "$work"
flower-superlink --insecure --host 127.0.0.1 --port "$port" --disable-runtime-dependency-installation >superlink.log 2>&1 &
sleep 8
python "$here/count_bytes.py" $((port + 1)) "$port" bytes.txt &
for site in 0 1 2; do
    flower-supernode --insecure --superlink 127.0.0.1:$((port + 1)) --port $((port + 1100 + site)) \
        --node-config "partition-id=$site num-partitions=3" >"supernode-$site.log" 2>&1 &
done
sleep 5
flwr run "$here/$app" --stream ${RUN_CONFIG:+--run-config "$RUN_CONFIG"} | tee run.log
sleep 2
read -r up down <bytes.txt
echo "on the sockets of the three SuperNodes: $down bytes down, $up bytes up"
