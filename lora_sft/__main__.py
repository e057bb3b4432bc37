"""The entry point of `python -m lora_sft`. Every launcher starts this module too."""

from lora_sft.cli.app import main

if __name__ == "__main__":
    main()
