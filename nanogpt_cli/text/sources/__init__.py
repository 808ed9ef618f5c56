"""From what the user names to documents: files, folders, records, the hub; any encoding."""
