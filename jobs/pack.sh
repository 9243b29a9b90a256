#!/bin/bash
# The environment as one file that unpacks itself, for `legw-hpc submit --unpack FILE`.
#
#   jobs/pack.sh FILE              of .venv and this checkout
#   VENV=DIR jobs/pack.sh FILE     of another environment
set -euo pipefail

file=${1:?usage: jobs/pack.sh FILE}
venv=${VENV:-$(dirname "$0")/../.venv}
ask='import legw_hpc, pathlib; from legw_hpc import runlog; print(runlog.commit(), pathlib.Path(legw_hpc.__file__).parents[1])'
read -r commit top < <("$venv/bin/python" -c "$ask")  # the last takes the blanks of a path

work=$(mktemp -d)
trap 'rm -rf "$work" "$file.tar" "$file.part"' EXIT
mkdir "$work/legw_hpc"
[ "$commit" = None ] || echo "$commit" >"$work/legw_hpc/COMMIT"  # for the logs of runs: there is no .git over there
tar -cf "$file.tar" -C "$(realpath "$venv")" . -C "$top" legw_hpc -C "$work" legw_hpc
read -r sum _ < <(sha256sum "$file.tar")
{
    cat <<END
#!/bin/bash
# legw-hpc at $commit and all that it needs but Python itself; made by jobs/pack.sh.
bytes=$(stat -c %s "$file.tar") sum=$sum
END
    cat <<'END'
#   bash FILE FOLDER    makes the folder: one process of each node unpacks, checked, the others wait for it
set -eo pipefail
folder=$1 limit=1200  # seconds that the others wait (assumed)
fail() { echo >&2 "legw-hpc: $0: $1, on $(hostname)"; exit 2; }
if mkdir "$folder" 2>/dev/null; then
    trap 'touch "$folder/.broken"' EXIT
    echo $$ >"$folder/.pid"
    tail -c "$bytes" "$0" >"$folder/.tar" || fail "cannot be copied to $folder"
    read -r found _ < <(sha256sum "$folder/.tar")
    [ "$found" = "$sum" ] || fail "has checksum $found, and had $sum"
    tar -xf "$folder/.tar" -C "$folder" || fail "cannot be unpacked in $folder"
    rm "$folder/.tar"
    sed -i "1s|^#!.*|#!$folder/bin/python|" "$folder/bin/legw-hpc"  # it names its interpreter by the path
    trap - EXIT
    touch "$folder/.whole"
else
    until [ -e "$folder/.whole" ]; do
        [ -d "$folder" ] || fail "cannot make the folder $folder"
        [ ! -e "$folder/.broken" ] || exit 2
        [ "$SECONDS" -lt "$limit" ] || fail "is not unpacked in $folder after $limit s"
        if pid=$(cat "$folder/.pid" 2>/dev/null) && [ -n "$pid" ] && ! kill -0 "$pid" 2>/dev/null; then
            [ -e "$folder/.whole" ] || [ -e "$folder/.broken" ] || fail "process $pid, which unpacked it in $folder, is gone"
        fi
        sleep 0.5
    done
fi
exit
END
    cat "$file.tar"
} >"$file.part"
mv "$file.part" "$file"
echo "$file: $(du -h "$file" | cut -f1), legw-hpc at $commit"
