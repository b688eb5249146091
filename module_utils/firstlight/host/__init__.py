# SPDX-License-Identifier: Apache-2.0
"""What a host is and has, read from where it stands: one file for each place to read from.

Each reader gets a :class:`.reading.Reader`, gives plain data, and leaves there the source of what
it found and the reason for what it did not.
"""
