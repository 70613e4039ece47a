"""Write configs/schema.json, from which editors complete and check YAML files."""

import json
from pathlib import Path

from configs.settings import Settings

if __name__ == "__main__":
    target = Path(__file__).parents[2] / "configs" / "schema.json"
    target.write_text(json.dumps(Settings.model_json_schema(), indent=2) + "\n")
    print(f"wrote {target}")
