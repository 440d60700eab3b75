#!/usr/bin/env bash
# Results of the README, cell by cell: bash reproduce.sh TARGET. A cell that is finished is not run again.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: bash reproduce.sh TARGET
  methods      the six methods on Alpine2D 100/100, 200 inner steps, 200 updates (minutes)
  synthetic    the paper's four synthetic panels, six methods, 5000 updates (hours)
  ratings      results/ratings: A-MAML (a quarter of an hour), then the other methods (hours); needs the data
  sinusoid     MAML's sinusoid experiment, with A-MAML beside it (minutes)
  images       Omniglot and Glyphs, 5 ways, 1 shot, six methods, 1500 updates (half an hour; needs Omniglot's data)
  efficiency   seconds, memory and accuracy of a meta-update, every method (an hour)
TEXT
    exit 2
}

cd "$(dirname "${BASH_SOURCE[0]}")"
source configs/environment.sh
methods="amaml maml maml1 fomaml imaml reptile"

case "${1:-}" in
methods)
    for method in $methods; do
        bash experiment.sh Alpine2D 100 100 200 cpu --meta-updates 200 --test-tasks 20 --method "$method" \
            --out "results/methods/$method" --resume
    done
    ;;
synthetic)
    for panel in "CosMixture 50" "CosMixture 100" "Alpine2D 50" "Alpine2D 100"; do
        for method in $methods; do
            read -r domain shots <<<"$panel"
            bash experiment.sh "$domain" "$shots" "$shots" 200 cpu --method "$method" --resume
        done
    done
    ;;
ratings)
    for method in $methods; do
        for cell in "MovieLens100K 10 15" "MovieLens100K 20 30" "Jester 10 15" "Jester 20 30"; do
            for seed in 0 1 2; do
                read -r domain shots queries <<<"$cell"
                bash experiment.sh "$domain" "$shots" "$queries" 50 cpu --method "$method" --seed "$seed" --resume
            done
        done
    done
    ;;
sinusoid)
    for method in maml amaml; do
        run="results/sinusoid/$method"
        bash experiment.sh Sinusoid 10 10 1 cpu --method "$method" --protocol inner --test-steps 10 --test-tasks 600 \
            --out "$run" --resume
        for shots in 5 10; do
            find_environment requirements.txt
            "$PYTHON" run.py --evaluate "$run" --shots "$shots" --out "$run-${shots}shot"
        done
    done
    ;;
images)
    for domain in Glyphs Omniglot; do
        for run in $methods imaml-damping10; do
            case $run in
            imaml-damping10) own="--cg-damping 10" ;;
            reptile) own="--inner-lr 0.4" ;;
            *) own="" ;;
            esac
            bash experiment.sh "$domain" 1 5 5 cpu --method "${run%-*}" $own --meta-updates 1500 --meta-batch 4 \
                --width 32 --test-interval 0 --out "results/images/$domain/$run" --resume
        done
    done
    ;;
efficiency)
    trained=results/Alpine2D/100shot-100query/200steps/amaml/seed0
    smooth=results/Glyphs/1shot-gelu
    bash experiment.sh Alpine2D 100 100 200 cpu --resume
    bash experiment.sh Glyphs 1 5 5 cpu --width 64 --activation gelu --meta-updates 500 --test-tasks 100 \
        --out "$smooth" --resume
    find_environment requirements.txt
    export OMP_NUM_THREADS=1
    for theta in "" "--trained $trained/checkpoint.pt"; do
        "$PYTHON" -m benchmarks.meta_update --network alpine --rounds 3 $theta
    done
    for theta in "" "--trained $smooth/checkpoint.pt"; do
        "$PYTHON" -m benchmarks.meta_update --network conv --dtype float32 --rounds 3 --steps 10 50 200 --skip-memory \
            --methods "A-MAML auto" "A-MAML rkc" "A-MAML euler" MAML "MAML checkpointed" FOMAML iMAML Reptile higher \
            $theta
    done
    "$PYTHON" -m benchmarks.accuracy --trained "$trained/checkpoint.pt"
    "$PYTHON" -m benchmarks.fourth_order
    ;;
*) usage ;;
esac
