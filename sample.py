"""Use a trained run: `python sample.py run=faces`. `python sample.py --help` lists the tasks."""

from latentfaces.cli.sample import main

if __name__ == "__main__":
    main()
