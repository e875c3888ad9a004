"""Adds rows to a bank from a process of its own, `appends.py BANK TIMES`; prints the ids it was given."""

from __future__ import annotations

import sys

import numpy as np

from storage.tables.bank import Bank

if __name__ == "__main__":
    bank = Bank(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(sys.argv[2])):
        ids = bank.append(np.ones((20, bank.dim)), "external", bank.encoder)
        print(*ids.tolist(), flush=True)
