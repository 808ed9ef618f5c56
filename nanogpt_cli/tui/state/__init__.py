"""What the dashboard knows of its runs: read from run folders, folded, judged; without Textual."""
