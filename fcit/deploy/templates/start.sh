#!/bin/sh
# Starts this site in the foreground; FCIT names the fcit command where it is not on the PATH.
set -eu
cd "$(dirname "$0")"
exec "${FCIT:-fcit}" client start SITE.yaml
