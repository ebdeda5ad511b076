"""A retriever of LangChain over a table that is enabled. The texts stay where they are.

python examples/langchain_search.py article "a question"

Set DATABASE_URL, and keep `embedworker run` running.
"""

import sys
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from embedworker import Client


class TableRetriever(BaseRetriever):
    """Finds passages of one table. ``matching`` keeps to rows with these values."""

    client: Client
    table: str
    k: int = 4
    matching: dict[str, Any] | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        # Of threads, too: LangChain's asynchronous calls come from them.
        hits = self.client.search(self.table, query, self.k, matching=self.matching)
        return [
            Document(hit.passage, id=str(hit.key), metadata={**hit.row, "score": hit.score})
            for hit in hits
        ]


if __name__ == "__main__":
    with Client() as client:
        retriever = TableRetriever(client=client, table=sys.argv[1], k=2)
        for document in retriever.invoke(" ".join(sys.argv[2:])):
            print(f"{document.metadata['score']:.2f}  {document.page_content}")
