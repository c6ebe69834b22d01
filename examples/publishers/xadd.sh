#!/bin/sh
# Publishes durably with one XADD:  ./xadd.sh ID TO MESSAGE
#
# TO is user:NAME for a notification, room:NAME for a chat message. The same ID again changes nothing.
# REDIS_URL says where Redis is.  apt-get install redis-tools jq
set -eu

case $2 in user:*) type=notification ;; *) type=chat ;; esac
data=$(jq --null-input --compact-output --arg message "$3" '{message: $message, from_user: "shop"}')
redis-cli -e -u "${REDIS_URL:-redis://127.0.0.1:6379}" \
  XADD gateway:events '*' id "$1" source shop type "$type" to "$2" data "$data"
