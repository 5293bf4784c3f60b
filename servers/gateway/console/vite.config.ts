import { defineConfig } from "vite";

// `npm run dev` shows a page that reloads itself, with the APIs of a running gateway behind it.
const gateway = process.env.LLMOS_GATEWAY ?? "http://127.0.0.1:8080";

export default defineConfig({
  base: "/console/",
  build: { outDir: "dist", emptyOutDir: true, assetsInlineLimit: 0, target: "es2022" },
  server: { proxy: Object.fromEntries(["/v1", "/llmos", "/metrics"].map((path) => [path, gateway])) },
});
