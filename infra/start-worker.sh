#!/bin/sh
# The Prefect worker: makes the work pool, deploys every flow of prefect.yaml, then takes up runs until it is stopped.
set -eu
cd "${GMEM_HOME:?set GMEM_HOME to the folder of prefect.yaml}"
prefect --no-prompt work-pool create gmem --type process --overwrite
prefect --no-prompt deploy --all
exec prefect worker start --pool gmem --type process --with-healthcheck --install-policy never
