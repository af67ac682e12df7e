#!/usr/bin/env bash
# One run by SLURM, one launcher a node, one process a GPU. The same line again goes on from the last whole checkpoint:
#
#     sbatch --nodes 1 cluster/slurm.sh paper runs/paper
#     sbatch --nodes 4 cluster/slurm.sh paper runs/paper32 --accelerate zero3_4x8.yaml --problems-per-step 32
#
# First the profile, then a folder that all nodes see, then options of `python -m sesa.distributed` that go before the profile's.
#SBATCH --job-name=sesa
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start it by sbatch, from the root of the checkout}"

profile=${1:?"usage: sbatch --nodes N cluster/slurm.sh PROFILE FOLDER [options]"}
output=${2:?"usage: sbatch --nodes N cluster/slurm.sh PROFILE FOLDER [options]"}
shift 2

python=${PYTHON:-.venv/bin/python}
options=(--profile "$profile" --output "$output" "$@")
# Stops here, with a message, if the plan does not hold. A line of it names accelerate's file, its nodes and its GPUs.
plan=$("$python" -m sesa.distributed "${options[@]}" --dry-run) || { echo "$plan"; exit 2; }
echo "$plan"
read -r config nodes gpus < <(awk '$1 == "launch" {print $2, $3, $4}' <<< "$plan")
if [[ $nodes != "$SLURM_JOB_NUM_NODES" ]]; then
    echo "$config is for $nodes nodes, and the job has $SLURM_JOB_NUM_NODES: sbatch --nodes $nodes" >&2
    exit 2
fi

export MAIN_HOST MAIN_PORT
MAIN_HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000))
export PYTHON_BIN=$python CONFIG=$config NODES=$nodes GPUS=$gpus OMP_NUM_THREADS=8

# Single quotes: SLURM_NODEID is another on every node.
srun --kill-on-bad-exit=1 bash -c '
    exec "$PYTHON_BIN" -m accelerate.commands.launch --config_file "$CONFIG" --num_machines "$NODES" --num_processes "$GPUS" \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$MAIN_HOST" --main_process_port "$MAIN_PORT" -m sesa.distributed "$@"
' launch "${options[@]}"
