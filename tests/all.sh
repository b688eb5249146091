#!/usr/bin/env bash
# What `make test` does: every part that is named, the first beside the others. It ends with how long each took, and,
# where something failed, with what that said: whoever reads a log reads its end first.
set -euo pipefail
cd "$(dirname "$0")/.."
first=$1
shift
log=$(mktemp -d)
beside=

# Make a target; what it says is kept, and how long it took.
part() {
  local began=$SECONDS status=0
  make --no-print-directory "$1" 2>&1 | tee "$log/$1.log" || status=$?
  echo "$1 $((SECONDS - began)) $status" >> "$log/parts"
  return "$status"
}

finish() {
  local status=$? name took failed
  [ -z "$beside" ] || kill -- "-$beside" 2>/dev/null || true
  sed -n '/^scenario  /,/^all of them/p' "$log/$first.log" 2>/dev/null || true
  printf '%-20s %6s\n' part s
  while read -r name took failed; do
    printf '%-20s %6d%s\n' "$name" "$took" "$([ "$failed" = 0 ] || echo '  - FAILED')"
  done < "$log/parts"
  printf '%-20s %6d\n' "all of it" "$SECONDS"
  if [ "$status" -ne 0 ]; then
    echo "What failed, once more:"
    while read -r name took failed; do
      [ "$failed" = 0 ] || sed 's/\x1b\[[0-9;]*m//g' "$log/$name.log" \
        | grep -aE '(FAILED|ERROR|fatal:|make: \*\*\*)|(^|│) *E  ' | tail -n 40 || true
    done < "$log/parts"
  fi
  rm -rf "$log"
  exit "$status"
}
trap finish EXIT
touch "$log/parts"
# A group of processes of its own, so that it can be ended whole. What it says comes in one piece.
set -m
part "$first" > /dev/null &
beside=$!
set +m
failed=0
for target; do
  part "$target" || failed=1
done
wait "$beside" || failed=1
beside=
cat "$log/$first.log"
exit "$failed"
