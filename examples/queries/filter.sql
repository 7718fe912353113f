-- Filter: DuckDB drops the older reviews, the model is asked about the others only.
--   vllm-relational sql --file examples/queries/filter.sql --model PATH_OR_NAME
SELECT review_id, name, comments
FROM 'examples/airbnb_reviews.parquet'
WHERE CAST(review_date AS DATE) > DATE '2024-01-01'
  AND LLM_FILTER('{comments} praises the location of {name}, which is described so: {description}',
                 comments, name, description)
ORDER BY review_id;
