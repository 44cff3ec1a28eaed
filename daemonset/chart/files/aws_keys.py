"""What botocore's `credential_process` asks for: the keys in a mounted Kubernetes secret, as JSON."""

import json
import sys
from pathlib import Path


def main() -> None:
    """The argument: where the secret is mounted. Its files are named like AWS' environment variables."""
    folder = Path(sys.argv[1])
    answer = {"Version": 1}
    for field, name, required in (
        ("AccessKeyId", "AWS_ACCESS_KEY_ID", True),
        ("SecretAccessKey", "AWS_SECRET_ACCESS_KEY", True),
        ("SessionToken", "AWS_SESSION_TOKEN", False),
    ):
        try:
            answer[field] = (folder / name).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            if required:
                raise SystemExit(f"the secret of credential {folder.name!r} is missing or has no {name}") from None
    sys.stdout.write(json.dumps(answer))


main()
