#!/usr/bin/env bash
# Six cells as jobs of a real SLURM, set up for the purpose on this machine and taken down again: root on Debian only.
# One cell is killed and goes on, one has a mistake in it (exit status 2); the others' results equal local ones to the bit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source configs/environment.sh
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "$0: needs root on Debian, for munge and the SLURM daemons" >&2
    exit 2
fi
find_environment requirements.txt
case $PYTHON in .venv/*) PYTHON=$PWD/$PYTHON ;; esac
packages="slurmctld slurmd slurm-client munge"
if ! command -v slurmctld slurmd sbatch munged >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages >/dev/null
fi

S=$(mktemp -d)
host=$(hostname -s)
finish() {
    local name
    timeout 10 scancel --partition=debug 2>/dev/null && sleep 2
    for name in slurmd slurmctld munged; do
        [ ! -e "$S/run/$name.pid" ] || kill "$(cat "$S/run/$name.pid")" 2>/dev/null || true
    done
    sleep 2
    rm -rf "$S"
}
trap finish EXIT
mkdir -p "$S"/{state,spool,log,run,cluster,local}
cat >"$S/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$S/run/munge.socket
CryptoType=crypto/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort=36817
SlurmdPort=36818
SlurmctldPidFile=$S/run/slurmctld.pid
SlurmdPidFile=$S/run/slurmd.pid
StateSaveLocation=$S/state
SlurmdSpoolDir=$S/spool
SlurmctldLogFile=$S/log/slurmctld.log
SlurmdLogFile=$S/log/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$S/log/jobcomp.txt
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
ReturnToService=2
MinJobAge=300
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
dd if=/dev/urandom of="$S/munge.key" bs=1 count=1024 2>/dev/null
chmod 600 "$S/munge.key"
munged --force --key-file="$S/munge.key" --socket="$S/run/munge.socket" --pid-file="$S/run/munged.pid" \
    --log-file="$S/log/munged.log" --seed-file="$S/run/munge.seed" 2>/dev/null
export SLURM_CONF=$S/slurm.conf
slurmctld -f "$SLURM_CONF" -i
sleep 2
slurmd -f "$SLURM_CONF" -N "$host"
sleep 3
echo "SLURM $(sbatch --version | cut -d' ' -f2), a node of $(srun -n1 nproc) cores"

for place in cluster local; do
    cat >"$S/$place/grid.toml" <<'EOF'
out = "{run}"
run = [
    { label = "amaml", method = "amaml" },
    { label = "maml", method = "maml" },
    { label = "fomaml", method = "fomaml" },
    { label = "reptile", method = "reptile" },
    { label = "imaml", method = "imaml" },
    { label = "mistake", method = "maml", inner_batch = 9 },
]
domain = "CosMixture"
shots = 4
queries = 4
inner_steps = 2
meta_updates = 1000
meta_batch = 2
test_tasks = 2
test_epochs = 5
test_interval = 0
width = 4
compile = "off"
EOF
done

root=$PWD
cd "$S/cluster"
# Starts the cells as jobs, until one has made updates.
begin() {
    bash "$root/reproduce.sh" grid.toml --slurm debug --walltime 00:20:00 --jobs 2 --workers 1 >"$S/log/cluster" 2>&1 &
    program=$!
    until [ -s "$1/metrics.jsonl" ]; do
        kill -0 $program || { cat "$S/log/cluster"; exit 1; }
        sleep 0.1
    done
}
begin amaml
kill "$(pgrep -P $program -f experiment.reproduce || echo $program)"
wait $program && status=0 || status=$?
echo "stopped with status $status: $(tail -n 1 "$S/log/cluster"); jobs left: $(squeue --noheader | wc -l)"
[ "$status" = 130 ] && [ -e amaml/checkpoint.pt ] && [ -z "$(squeue --noheader)" ]
begin fomaml
squeue --format "%i %P %T %C" | sed 's/^/    /'
for pid in $(pgrep -f -- "--method fomaml"); do # srun's command line has it as well
    case $(readlink "/proc/$pid/exe") in *python*) kill -9 "$pid" ;; esac
done
echo "killed the run of cell fomaml after update $(wc -l <fomaml/metrics.jsonl)"
wait $program && status=0 || status=$?
sed 's/^/    /' "$S/log/cluster"
cd "$S/local"
bash "$root/reproduce.sh" grid.toml --workers 2 >"$S/log/local" 2>&1 || true

"$PYTHON" - "$S" "$status" <<'PYTHON'
import json, sys
from pathlib import Path
import torch

folder, status = Path(sys.argv[1]), int(sys.argv[2])
assert status == 1, f"reproduce.sh ended with {status}, not with 1 for the cell that failed"
records = {p.stem: json.loads(p.read_text()) for p in (folder / "cluster/.cells/grid").glob("*.json")}
assert records["mistake"]["status"] == 2 and records["mistake"]["attempts"] == 1, records["mistake"]
assert records["fomaml"]["attempts"] >= 2, records["fomaml"]
assert [(folder / place / "grid.csv").read_text().count("\n") for place in ("cluster", "local")] == [6, 6]
for name in sorted(set(records) - {"mistake"}):
    assert records[name]["status"] == 0, records[name]
    one, two = folder / "cluster" / name, folder / "local" / name
    for file in ("metrics.jsonl", "test.json"):
        assert (one / file).read_bytes() == (two / file).read_bytes(), (name, file)
    a, b = (torch.load(run / "checkpoint.pt", weights_only=True) for run in (one, two))
    assert a["update"] == b["update"] == 1000
    for part, value in a["model"].items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, b["model"][part]), (name, part)
    print(f"cell {name}: {records[name]['attempts']} attempt(s), theta, metrics and tests equal local ones to the bit")
said = (folder / "cluster/.cells/grid/mistake.log").read_text().splitlines()
print(f"cell mistake: 1 attempt, {next(line for line in said if line.startswith('run.py: '))}")
PYTHON
