"""How fast the cipher scrambles batches of 32x32 colour pictures, beside one pass that only copies them.

    OMP_NUM_THREADS=1 python benchmarks/cipher_speed.py

Both are measured in turns in one process; the copy is the floor that no cipher can beat. One thread.
"""

from __future__ import annotations

import argparse
import datetime
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from veilmark.ppidsg.cipher import Cipher
from veilmark.ppidsg.secret import Secret

CASES = {"uint8": torch.uint8, "float32": torch.float32}


def rates(pictures: torch.Tensor, repeats: int) -> tuple[float, float, float]:
    """Pictures per CPU-second: scrambled with a shared secret, with one each, and only copied; medians."""
    cipher, n = Cipher(Secret(bytes(32))), len(pictures)
    few = pictures[:256]
    names = [str(i).encode() for i in range(len(few))]
    work = (
        (lambda: cipher.scramble(pictures), n),
        (lambda: cipher.scramble(few, names), len(few)),
        (lambda: pictures.clone(), n),
    )
    found: list[list[float]] = [[], [], []]
    for _ in range(repeats):
        for row, (call, count) in zip(found, work, strict=True):
            began = time.process_time()
            call()
            row.append(count / max(time.process_time() - began, 1e-9))
    shared, own, copied = (float(np.median(row[1:])) for row in found)
    return shared, own, copied


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=512, help="pictures in a batch (default: 512)")
    parser.add_argument("--repeats", type=int, default=31, help="measurements; the first is left out (default: 31)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(
        "values", "shared secret", "a secret each", "copied only", "copy / shared", title="pictures per second"
    )
    for name, dtype in CASES.items():
        pictures = torch.randint(0, 256, (args.pictures, 3, 32, 32), dtype=torch.uint8).to(dtype)
        shared, own, copied = rates(pictures, args.repeats)
        table.add_row(name, f"{shared:,.0f}", f"{own:,.0f}", f"{copied:,.0f}", f"{copied / shared:.1f}")
    console = Console()
    console.print(table)
    console.print(f"32x32 RGB, block 4, all steps, one thread; {datetime.date.today().isoformat()}")


if __name__ == "__main__":
    main()
