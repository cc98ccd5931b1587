"""What figures in the documents come of. Each is a command: `python -m benchmarks.cpu.stall`, from the repository."""

from pathlib import Path

TRACE = Path(__file__).parent / "azure_conversations.csv"
"""Prompt and answer lengths of the Azure conversation trace's first queries: ContextTokens, GeneratedTokens."""
