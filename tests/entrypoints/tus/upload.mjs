// Uploads a file with tus-js-client: node upload.mjs ENDPOINT TOKEN FILE PATH CHUNK PARALLEL
// Tells each progress on a line; ends with 0 once the upload is finished.
import { createReadStream, statSync } from "node:fs";
import { Upload } from "tus-js-client";

const [endpoint, token, file, path, chunk, parallel] = process.argv.slice(2);
const upload = new Upload(createReadStream(file), {
  endpoint,
  headers: { Authorization: `Bearer ${token}` },
  metadata: { path },
  uploadSize: Number(parallel) > 1 ? null : statSync(file).size,
  chunkSize: Number(chunk) || Infinity,
  parallelUploads: Number(parallel) || 1,
  retryDelays: [100, 200, 400, 800, 1600, 3200],
  onProgress: (sent, all) => console.log(`${sent} of ${all}`),
  onError: (error) => {
    console.error(String(error));
    process.exit(1);
  },
  onSuccess: () => process.exit(0),
});
upload.start();
