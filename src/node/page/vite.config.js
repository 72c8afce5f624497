import { defineConfig } from 'vite';

export default defineConfig({
  base: '/demo/',
  build: { outDir: 'dist', assetsDir: 'assets', target: 'es2022', chunkSizeWarningLimit: 2000 },
});
