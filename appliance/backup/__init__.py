"""Backups: everything a person would miss, in one encrypted file, and the way back.

`create` makes a backup of a running Hob, `restore` prepares one for use, `pending` puts it in the place of
what was there, when nobody uses that. docs/backup.md describes the file.
"""
