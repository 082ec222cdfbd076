"""Train one stage: `python train.py model=vae ...`, then `python train.py model=ldm ...`."""

from latentfaces.cli.train import main

if __name__ == "__main__":
    main()
