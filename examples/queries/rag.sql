-- RAG: the three homes whose descriptions are nearest to what a guest liked become fields of the prompt.
--   vllm-relational index examples/airbnb_reviews.parquet description -o homes.index --embedder EMBEDDING_MODEL
--   vllm-relational sql --file examples/queries/rag.sql --model PATH_OR_NAME
SELECT review_id,
       name,
       LLM('Which of these homes suits a guest who writes {comments}? {context_1} {context_2} {context_3}',
           comments, context_1, context_2, context_3) AS advice
FROM 'examples/airbnb_reviews.parquet',
     retrieve(comments, 'homes.index', 3)
WHERE CAST(review_date AS DATE) > DATE '2024-01-01'
ORDER BY review_id;
