"""A retriever of LlamaIndex over a table that is enabled. The texts stay where they are.

python examples/llamaindex_search.py article "a question"

Set DATABASE_URL, and keep `embedworker run` running.
"""

import sys
from typing import Any

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from embedworker import Client


class TableRetriever(BaseRetriever):
    """Finds passages of one table. ``matching`` keeps to rows with these values."""

    def __init__(
        self, client: Client, table: str, k: int = 4, matching: dict[str, Any] | None = None
    ) -> None:
        self._client = client
        self._table = table
        self._k = k
        self._matching = matching
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        question = query_bundle.query_str
        hits = self._client.search(self._table, question, self._k, matching=self._matching)
        return [
            NodeWithScore(
                node=TextNode(id_=str(hit.key), text=hit.passage, metadata=hit.row),
                score=hit.score,
            )
            for hit in hits
        ]


if __name__ == "__main__":
    with Client() as client:
        for found in TableRetriever(client, sys.argv[1], k=2).retrieve(" ".join(sys.argv[2:])):
            print(f"{found.score:.2f}  {found.node.get_content()}")
