#!/bin/sh
# Trains the default experiment on the bundled data and evaluates it on the test part. Every call
# makes a new run: runs/demo-1, runs/demo-2, ... Arguments go to `seqtrain train`:
#
#   sh scripts/demo.sh norm=batch trainer.max_epochs=4
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
sh scripts/setup.sh
number=1
while [ -e "runs/demo-$number" ]; do
    number=$((number + 1))
done
run=runs/demo-$number
predictions=$run/predictions/demo.tsv

.venv/bin/seqtrain train -o "$run" "$@"
.venv/bin/seqtrain eval "$run" data/motifs/test.fasta --labels data/motifs/labels.tsv \
    -o "$predictions" --json "$run/demo.json"

root=$(pwd -P)
cat <<END

run            $root/$run
predictions    $root/$predictions
metrics        $root/$run/demo.json
TensorBoard    "$root/.venv/bin/tensorboard" --logdir "$root/$run/tensorboard"
END
