#!/bin/sh
# Calls the API for one organization with curl.  fetch.sh ORGANIZATION URL
# CONSENTRY_SOCKET names another socket than the usual one.
set -eu
organization=$1 url=$2
socket=${CONSENTRY_SOCKET:-/run/consentry/consentry.sock}
worker=http://localhost/v1/organizations/$organization/token

# The token goes into files that only this user can read, and to curl on standard input: never into an argument.
umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fetch() { curl -sS --fail-with-body --unix-socket "$socket" -D "$work/headers" -o "$work/token" "$@"; }
call() {
    sed -n 's/.*"access_token":"\([^"]*\)".*/header = "Authorization: Bearer \1"/p' "$work/token" |
        curl -sS -K - -o "$work/answer" -w '%{http_code}' "$url"
}

fetch "$worker"
status=$(call)
if [ "$status" = 401 ]; then
    # The tag names the rejected token, so that many callers cause one exchange.
    etag=$(tr -d '\r' <"$work/headers" | sed -n 's/^[Ee][Tt]ag: //p')
    fetch -X POST -H "If-Match: $etag" "$worker/refresh"
    status=$(call)
fi
cat "$work/answer"
[ "$status" = 200 ]
