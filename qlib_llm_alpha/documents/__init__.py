"""An as-of store of papers, reports and news: retrieval, cleaning, masking, citations that are verified."""
