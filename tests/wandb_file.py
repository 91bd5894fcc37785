"""What an offline run of W&B has written, read without W&B's own reader, which is not public."""

import json
import os
import struct
import zlib


class WandbFile:
    """The records in a run-*.wandb file: a log of protobuf messages, cut into pieces that never cross 32 KiB blocks."""

    BLOCK, HEAD = 32768, struct.Struct("<IHB")  # of a piece: checksum, length, and which part of a message it is
    WHOLE, FIRST, _MIDDLE, LAST = 1, 2, 3, 4

    def __init__(self, path):
        from wandb.proto.wandb_internal_pb2 import Record

        self.records = []
        content = path.read_bytes()
        assert content.startswith(b":W&B")
        position, message = 7, b""
        while position + self.HEAD.size <= len(content):
            rest_of_block = self.BLOCK - position % self.BLOCK
            if rest_of_block < self.HEAD.size:
                position += rest_of_block
                continue
            checksum, length, part = self.HEAD.unpack_from(content, position)
            position += self.HEAD.size
            piece = content[position : position + length]
            position += length
            assert zlib.crc32(bytes([part]) + piece) == checksum
            message = piece if part in (self.WHOLE, self.FIRST) else message + piece
            if part in (self.WHOLE, self.LAST):
                record = Record()
                record.ParseFromString(message)
                self.records.append(record)

    def of_kind(self, kind):
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @staticmethod
    def values(items):
        return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}

    @property
    def history(self):
        return [self.values(row.item) for row in self.of_kind("history")]

    @property
    def config(self):
        run = self.of_kind("run")[0]
        return self.values(run.config.update)

    @property
    def summary(self):
        """What the run's summary has in the end, by metric: a value, or those of `min`, `max` and `last`."""
        found = {}
        for update in self.of_kind("summary"):
            for item in update.update:
                name, *below = item.nested_key or [item.key]
                if not below:
                    found[name] = json.loads(item.value_json)
        return found

    @property
    def exit_codes(self):
        return [record.exit_code for record in self.of_kind("exit")]


def wandb_files(folder):
    return [WandbFile(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=os.path.getmtime)]
