"""`python -m lora_sft`, `lora-sft`, and what every launcher starts."""

from lora_sft.cli.app import main

if __name__ == "__main__":
    main()
