# SPDX-License-Identifier: Apache-2.0
"""Pinned snapshots of model repositories: what they hold, how they are brought and kept."""
