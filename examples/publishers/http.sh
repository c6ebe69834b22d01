#!/bin/sh
# Publishes durably over HTTP:  ./http.sh ID TO MESSAGE
#
# TO is user:NAME for a notification, room:NAME for a chat message. The same ID again changes nothing, so
# trying again is safe. The answer comes when it is stored; anything but that is an exit code other than 0.
# GATEWAY_API_URL says where the node's internal listener is, GATEWAY_API_KEY is its key.
# apt-get install curl jq
set -eu

case $2 in user:*) type=notification ;; *) type=chat ;; esac
jq --null-input --arg type "$type" --arg to "$2" --arg message "$3" \
  '{source: "shop", type: $type, to: $to, data: {message: $message, from_user: "shop"}}' |
  curl --silent --show-error --fail-with-body --max-time 60 --retry 5 --retry-connrefused \
    --header "Authorization: Bearer ${GATEWAY_API_KEY-}" \
    --header "Content-Type: application/json" \
    --header "Idempotency-Key: $1" \
    --data-binary @- "${GATEWAY_API_URL:-http://127.0.0.1:9000}/api/events"
