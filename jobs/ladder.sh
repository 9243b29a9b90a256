#!/bin/bash
# The six runs of Table 1 (ImageNet, ResNet-50, batch 1,024 to 32,768), a job each.
#
#   jobs/ladder.sh MACHINE [key=value ...] [option ...]     as of every `legw-hpc submit`
#   jobs/ladder.sh skylake --time 12:00:00 --chain 8 --stage --account A
#   DRY_RUN=1 jobs/ladder.sh knl                         check and print the six commands, submit nothing
#
# 32 images a rank and step: the recipe's micro-batch, over which batch norm is.  So every run has the same
# load on a node, and a fixed number of epochs takes half the time with twice the nodes.
set -eu

machine=${1:?usage: jobs/ladder.sh MACHINE [key=value ...] [option ...]}
shift
fail() { echo >&2 "jobs/ladder.sh: $1"; exit 2; }
case $machine in # ranks a node x 32
    knl* | skylake) images=64 ;;
    gpu4) images=128 ;;
    gpu8) images=256 ;;
    *) images=${IMAGES:-} ;;
esac
[ -n "$images" ] || fail "it knows the ranks of knl, knl-stampede2, skylake, gpu4 and gpu8, not of $machine: IMAGES=32 x its ranks a node"
[ $((1024 % images)) = 0 ] || fail "IMAGES=$images: a node's images do not go evenly into a batch of 1024"
batches="1024 2048 4096 8192 16384 32768" words=("$@")
made() { # batch: its command
    command=(legw-hpc submit imagenet-resnet50 "batch=$1" ${words[@]+"${words[@]}"})
    command+=(--machine "$machine" --nodes $(($1 / images)))
}
# All of them before any is queued: the largest may want more nodes than there are.
for batch in $batches; do made "$batch"; "${command[@]}" --dry-run >/dev/null; done
if [ -n "${DRY_RUN:-}" ]; then
    for batch in $batches; do made "$batch"; printf '%q ' "${command[@]}"; echo; done
    exit
fi
code=0
for batch in $batches; do made "$batch"; "${command[@]}" || code=$?; done # one that has a job or a result is passed over
exit "$code"
