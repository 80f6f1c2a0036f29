# A job for each run of a grid. lib/batch/sweep.py expands the grid into runs.json, calls this and says what came of it.
import json
import re
import sys

ROOT, LOGS, PYTHON = config["root"], config["logs"], sys.executable
with open(f"{LOGS}/runs.json") as file:
    RUNS = json.load(file)
ORDER = list(RUNS)
FOLDERS = {run["folder"] for run in RUNS.values()}


# Paths are absolute and marked local(): every machine sees the checkout under one path.
rule all:
    input:
        [local(f"{run['folder']}/{name}.json") for name, run in RUNS.items()],


# Not the `notebook:` directive, which hands papermill no parameters. What stands under params makes a run anew when it
# changes; the notebook is no input, because a checkout or an output in it changes its date.
rule run:
    output:
        local("{folder}/{run}.json"),
    wildcard_constraints:
        folder="|".join(map(re.escape, FOLDERS)),
        run="|".join(map(re.escape, RUNS)),
    priority: lambda wildcards: len(ORDER) - ORDER.index(wildcards.run)
    threads: 1
    params:
        notebook=lambda wildcards: RUNS[wildcards.run]["notebook"],
        parameters=lambda wildcards: json.dumps(RUNS[wildcards.run]["parameters"]),
        code=lambda wildcards: RUNS[wildcards.run]["code"],
    shell:
        "cd {ROOT:q} && OMP_NUM_THREADS={threads} {PYTHON:q} -m lib.batch {params.notebook:q} -y {params.parameters:q}"
        " --output {LOGS:q}/{wildcards.run}.executed.ipynb --report {LOGS:q}/{wildcards.run}.report.json"
        " > {LOGS:q}/{wildcards.run}.log 2>&1"
