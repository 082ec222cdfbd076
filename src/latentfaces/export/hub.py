"""Upload of a model folder to a hub."""

from pathlib import Path

from latentfaces.errors import UserError, missing_extra, reason
from latentfaces.model_folder import HUB_ID


def check_push(repository: str) -> None:
    """Check what an upload needs, before anything is exported.

    Raises:
        UserError: the ID has another form, or huggingface_hub is missing.
    """
    if not HUB_ID.fullmatch(repository):
        raise UserError(f"push={repository} is not an ID of the hub, such as me/faces. Choose another.")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise missing_extra("push", "hub") from None


def push(folder: Path, repository: str, dry_run: bool) -> str:
    """Upload the folder to a repository, which is created as private. Return its address.

    Raises:
        UserError: there is no login, or the hub refuses.
    """
    from huggingface_hub import HfApi

    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"{path.relative_to(folder)}: {path.stat().st_size:,} bytes")
    if dry_run:
        return f"{repository} is unchanged: dry_run=true"
    api = HfApi()
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by latentfaces")
    except Exception as error:  # of the network or of the hub
        raise UserError(
            f"push={repository} failed ({reason(error)}). Run `hf auth login`, then `hf upload {repository} {folder}`."
        ) from error
    return str(address)
