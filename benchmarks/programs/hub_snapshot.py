"""Downloads a repository with `snapshot_download`. Settings come as JSON in the variable REQUEST."""

import json
import os

from huggingface_hub import snapshot_download

request = json.loads(os.environ["REQUEST"])
snapshot_download(request["repo"], cache_dir=request["into"], max_workers=request["workers"])
