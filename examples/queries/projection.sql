-- Projection: one answer a review. The listing's texts repeat, so most of every prompt comes from the cache.
--   vllm-relational sql --file examples/queries/projection.sql --model PATH_OR_NAME -o answers.parquet
SELECT review_id,
       name,
       LLM('Does the guest confirm what the host promises? {comments} {name} {description} {neighborhood_overview}',
           comments, name, description, neighborhood_overview) AS verdict
FROM 'examples/airbnb_reviews.parquet'
ORDER BY review_id;
